"""Does a memory help, and can it hurt? The paper's protocols with its baselines, resumable, every generation kept."""
