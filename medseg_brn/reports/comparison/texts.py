"""What a reader who does not know the paper must know: one text per section, and the words for names."""

DICE = (
    "Dice is the overlap of the segmentation with the reference on unseen volumes: 1 is perfect, 0 is no "
    "overlap. A good norm is high at every batch size and flat towards small ones. Where the vertical "
    "bars (95 % intervals) of two norms overlap widely, the figure does not tell which is better."
)

SPREAD = (
    "A norm that depends on luck gives a different result with every seed. Each mark below is one run; "
    "good are marks close together and far to the right."
)

BATCH_SIZE = (
    "How far Dice depends on the batch size: what each doubling adds (a straight line over the batch sizes, "
    "mean over seeds; 0 is best), and what is left at the smallest of the Dice at the largest (1 is best)."
)

DISPARITY = (
    "Some norms compute one thing while they are trained (with the batch's own statistics) and another "
    "when they are used (with stored ones). The train/eval disparity says how far the two outputs of one "
    "network differ on the same volumes. Good is small; 0 means that what was trained is what is used."
)

TILE_MISMATCH = (
    "Large volumes are segmented tile by tile. If a norm takes its statistics from the tile, the same "
    "place gets another answer in another tile, and seams appear. The tile mismatch is how far answers move "
    "when the norms take their statistics from the tile instead of the whole volume, all else (and what the "
    "convolutions see) being equal. Good is small; 0 means that tiling cannot be seen."
)

SEAMS = (
    "The same slice with each norm: the image, the foreground probability with the volume in one piece, "
    "the same stitched from tiles whose norms use the tile's own statistics, and the difference. Dashed "
    "lines are tile borders. The difference is drawn on one scale in all pictures: black is 0, the "
    "brightest yellow {largest}. Good is black."
)

NOISE = (
    "A batch's mean and variance are estimates, and small batches make them noisy. Theory predicts how "
    "noisy, from statistics of single patches; it is measured on batches of other patches. Marks on the "
    "diagonal mean that the noise is understood; marks above it mean more noise than predicted. Further to "
    "the upper right is noisier."
)

CLIP_RATES = (
    "Batch renormalization corrects the batch's statistics by a factor r and a shift d, and clips both. "
    "The clip rate is the share of channels where a clip was hit. Where it is high, the layer behaves "
    "like plain batch normalization; good is a rate that falls towards 0 once the limits have opened. The "
    "curves are those of the training batches at the limits of their step; the tables below give those of "
    "the finished network, on patches it has not seen."
)

DRIFT = (
    "The running statistics are what a trained network uses. Their drift says how far one step "
    "moves them, in units of their own spread. Good is a curve that falls: the statistics settle."
)

LOSS = (
    "What training minimizes. Good curves fall smoothly and lie on one another for all seeds. A spike is "
    "a step whose loss stands out far above the steps before it (rolling median plus six robust standard "
    "deviations): many of them mean unstable training."
)

COST = (
    "What a training step costs on the machine named above. Lower is better. Runs that share the machine "
    "slow one another down, so the fastest run's time is given, and small differences mean little."
)

SETTING = (
    "A norm (normalization layer) keeps the values inside a network in a fixed range. The norms differ in "
    "where they take mean and spread from: the batch, the volume, or a running average. A cell is one "
    "norm at one batch size with one input; every cell was trained once per seed."
)

VERDICTS = (
    "Each claim with the size of its effect, and the probability of such an effect by chance, adjusted by "
    "Holm's method within each question. For Dice, From and To are 95 % intervals over seeds and cases "
    "together; for what is measured once per run, over seeds; a difference in spread has a test (Brown and "
    "Forsythe's), but no interval. An interval that contains 0 does not say that two norms are equal, only "
    "that these runs do not tell them apart. With fewer than five seeds, a norm that fails only now and then "
    "may not have failed here."
)

QUESTIONS = {
    "dice": "Dice",
    "disparity": "train/eval disparity",
    "tile_mismatch": "tile mismatch",
    "spread": "spread over seeds",
    "batch_size_slope": "dependence of Dice on the batch size",
}

BETTER = {
    "Dice": "higher is better",
    "train/eval disparity": "lower is better",
    "tile mismatch": "lower is better",
    "spread over seeds": "lower is better",
    "dependence of Dice on the batch size": "none is best",
}

INPUTS = {
    "zscored": ("z-scored intensities", "each volume is brought to mean 0 and standard deviation 1"),
    "raw": (
        "raw intensities",
        "each volume keeps its own offset and scale; noise and brightness changes of the augmentation, given "
        "in units of normalized intensities, have next to no effect there",
    ),
}
"""Input normalization -> in a few words, and what it does."""

COLUMN_NOTES = {
    "Collapsed": "runs that diverged, or whose Dice is below half the median of the others",
    "Dice, eval − train": "change of Dice from the batch's own statistics to the stored ones; 0 is good",
    "Shift of mean, of variance": "distance of the stored statistics from the population's, relative to its "
    "spread; 0 is good",
    "Departure of scale, of mean": "distance of the batch's statistics from the running ones: mean "
    "|ln(σ_B/σ)| and |μ_B − μ|/σ, over the last quarter of the samples taken in training; small is good",
    "Drift": "how far a step moved the stored statistics, mean over the last quarter of the samples; small "
    "is good",
    "Clip rate, clipped mass": "share of channels where r or d met its limit, and how much was cut off: in "
    "the finished network, at its final limits, on patches it has not seen",
    "Worker divergence": "difference between the statistics of two workers that each saw half of the "
    "patches; 0 is good",
    "Leakage": "accuracy gained in training mode by looking at batchmates, beyond what one volume can tell; "
    "0 is good",
    "Noise of variance, of mean": "spread of the batch's statistics over batches, relative to the variance "
    "and to the standard deviation of the population; small is good",
    "First order": "the textbook's prediction of the variance's noise, about the population's mean instead "
    "of the batch's own",
    "Effective sample size": "number of independent voxels that would be as noisy as one patch",
    "Intraclass correlation": "share of the features' variance that lies between patches",
    "Gradient noise scale": "batch size at which noise and signal of the gradient are equal; median of the "
    "runs",
    "Gradient fidelity": "cosine between the training gradient and that of the function in use; 1 is good",
    "Batchmate dependence": "how much a volume's output varies with the others in its batch; 0 is good",
    "Backward cross-talk": "how much a volume's gradient depends on the others in its batch; 0 is good",
}


def say_input(name: str) -> str:
    """An input normalization in a few plain words."""
    return INPUTS.get(name, (name, ""))[0]
