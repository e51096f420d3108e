"""Where frames come from: files, folders and network cameras, and which of their frames are inspected."""
