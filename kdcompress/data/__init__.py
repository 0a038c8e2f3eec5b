"""Images in: data sets, splits, replayable augmentation, loaders."""
