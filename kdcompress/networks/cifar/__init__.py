"""Networks for small images, as the distillation literature compares them on CIFAR-100."""
