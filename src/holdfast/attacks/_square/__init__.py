"""What Square moves, and how, one file per norm."""
