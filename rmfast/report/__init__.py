"""What a run leaves behind for its reader: plots, one self-contained page and a summary in words."""
