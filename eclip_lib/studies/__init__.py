"""What notebooks measure, draw and conclude beyond formulas; a module bears its notebook's name."""
