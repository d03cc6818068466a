"""What is measured: accuracies, fidelity, membership."""
