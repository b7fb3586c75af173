"""The scripts that a bundle contains and the device runs: Python 3.8, numpy, and ONNX Runtime or TensorRT."""
