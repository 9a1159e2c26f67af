"""The files a run hands over: plain PyTorch, torch.export and ONNX, each loaded again and checked."""
