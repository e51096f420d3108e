"""The processes of a running daemon, and the pure decisions that they carry out."""
