"""How one training step works: features are collected, terms compared, weighed, and added to the detection loss."""
