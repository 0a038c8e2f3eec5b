"""Self-distillation methods: the student learns from its own outputs."""
