"""Wave to spectrogram, exactly as each published system does it. Imports no torch."""
