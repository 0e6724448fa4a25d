"""The C++ library: where it lies, and what of it Python calls. Only this room uses ctypes."""
