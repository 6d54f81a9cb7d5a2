"""Loop generator: patterns -> MIDI -> FluidSynth -> effects and planted degradations."""
