"""From a trained student to a device: export, check against the checkpoint, time, and bundle."""
