"""What the notebooks measure, draw and conclude beyond the library's formulas; each module bears its
notebook's name."""
