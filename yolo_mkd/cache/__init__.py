"""The teacher cache: outputs computed once for each augmented view and read from disk later; unlabelled images."""
