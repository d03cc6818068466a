"""The closed loop: rounds of plan, generate, train, measure."""
