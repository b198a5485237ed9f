"""Which class and split an image has, by the folders that it lies in."""
