"""Every parity tolerance of HTS-AT in one place; loosening one needs a reason written here.

Values are max |difference| over max |reference| unless named otherwise; float32 on the CPU.
"""

# Same log-mel in: only the order of float32 sums differs (measured <= 1e-5 at every stage).
SAME_MEL = 5e-5
SAME_MEL_OUTPUTS = 1e-5
EMBEDDING_OVER_NORM = 2e-5  # max |difference| / L2 norm, same log-mel in

# Waveform in: bands near the -100 dB floor carry the rounding of a float32 STFT, up to 0.02 dB.
MEL_DB_MAX = 0.05
MEL_DB_MEAN = 5e-4
STAGES_FROM_WAVE = 1e-3
OUTPUTS_FROM_WAVE = 1e-4
PIPELINE_OVER_NORM = 1e-4
PIPELINE_COSINE = 0.99999

BF16_COSINE = 0.999
DEMO_RANK_CORRELATION = 0.999  # Spearman, scores of the demo loops in any precision
OTHER_SHAPE_OVER_NORM = 1e-6  # another batch size or bucket; the same shape gives the same bits
DEVICE_RESAMPLER_COSINE = 0.9999
