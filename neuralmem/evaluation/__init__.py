"""What a trained model can do, measured: needles in haystacks, and controls that say where the answer came from."""
