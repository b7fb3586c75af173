"""A teacher that is only boxes: read them from files, fuse them, and give them to the student's anchors."""
