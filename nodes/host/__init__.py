"""Everything that knows ComfyUI's insides, and every difference between its versions."""
