"""Export: checkpoints -> rewritten networks -> ONNX graphs -> a bundle whose parity was measured."""
