"""ONNX export, parity with torch, and the interleaved benchmark."""
