"""LeRobot datasets to batches: what a dataset says, which frame comes when, workers, augmentation."""
