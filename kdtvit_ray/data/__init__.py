"""From image files to batches: names, census, preparation, folds, memory-mapped batches. No torch, no Ray."""
