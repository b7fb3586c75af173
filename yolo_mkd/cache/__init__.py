"""Recorded knowledge: the teacher speaks once for each view of an image, and every later run reads what it said."""
