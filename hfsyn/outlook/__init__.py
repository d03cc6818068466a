"""What a run would come to, before anything is spent: plan, probe, doctor."""
