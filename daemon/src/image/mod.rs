//! Images: archives become layers, configurations and names.
