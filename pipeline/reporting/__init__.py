"""What people look at: figures, meshes, and the report that holds everything in one file."""
