"""What travels in a bundle and runs on the device: Python 3.8, numpy, and ONNX Runtime or TensorRT."""
