"""The numbers of the recipe that plans are made from, in one place, each with where it comes from.

"Measured" means `tests/benchmarks/benchmark_recipe.py`: hippocampus MRI, fold 1, one part changed at a time,
each variant trained for the same processor time on one thread; the numbers are differences of the mean Dice
from the recipe's, with the 95 % interval over cases. They were measured before deep supervision was part of
the recipe. "To be measured by" names a variant of that benchmark that has not been trained: the value is the
shipped experiment's. The recipe as a whole is that experiment, `configs/hippocampus_mri.yaml`. What comes
from nnU-Net is in Isensee et al. 2021 (10.1038/s41592-020-01008-z), methods and supplementary note 4.
"""

# Network. ---------------------------------------------------------------------------------------------

# At full resolution is where a CPU's time goes: few channels and one block there, three times as many
# channels on the next level (to be measured by `narrow`: 16, 32, 64, 128).
CPU_CHANNELS = (16, 48)
# On a GPU a convolution of 16 channels is no faster than one of 32 (nnU-Net starts with 32 and doubles).
GPU_CHANNELS = (32, 64)
# Narrower networks for small budgets, as shares of the channels above.
WIDTHS = (1.0, 0.75, 0.5)
MOST_CHANNELS = 320  # nnU-Net's limit for 3D networks
MOST_LEVELS = 6  # nnU-Net: five poolings
SMALLEST_EDGE_VOXELS = 4  # of the coarsest level, nnU-Net
ANISOTROPIC_RATIO = 2.0  # an axis this much coarser than the finest one is not pooled yet, nnU-Net
BLOCKS = 2  # convolutions of each level, nnU-Net
CPU_BLOCKS_FULL_RESOLUTION = 1  # measured when the shipped experiment was made
ENCODER = "plain"  # measured: `residual`, with a residual stem, -.0013 (-.0042 to +.0017), nothing that shows
WEIGHT_STANDARDIZATION = True  # Qiao et al. 2019, folds away at inference; to be measured by `plain_weights`
# Networks with so many levels get it; measured: `deep_supervision` +.0017 (-.0008 to +.0042).
DEEP_SUPERVISION_LEVELS = 4
# Batch renorm: fractions of the run at which r and d begin to be let go, and are let go in full.
RENORM_SCHEDULE = (0.2, 0.7, 0.7)

# Voxel size and patches. ------------------------------------------------------------------------------

THICK_SLICE_RATIO = 3.0  # from here on the long axis takes a percentile instead of the median, nnU-Net
THICK_SLICE_PERCENTILE = 10  # nnU-Net
# Of a scan much larger than its patch, a patch sees too little to know where it is: voxels are made larger
# until a patch holds so much of the scan (nnU-Net's low resolution stops at a quarter, on larger GPUs).
LEAST_PATCH_SHARE = 1 / 32
COARSEST_SPACING_MM = 3.0  # TotalSegmentator's fast models (Wasserthal et al. 2023) still segment at 3 mm
LEAST_STRUCTURE_VOXELS = 200  # what must be left of the smallest structure when voxels are made larger
CROP_WORTH_IT = 0.95  # a crop that keeps a larger share of the median scan is not made
SKULL_STRIPPED = 0.25  # share of exact zeros from which intensities are measured on the others only
MOST_PATCH_VOXELS = 128**3  # nnU-Net's plans for 8 GB GPUs stay near it
COMFORTABLE_PATCH_VOXELS = 48**3  # below it, or the whole scan where that is less, width is given up first
WHOLE_SCAN_RATIO = 0.75  # a patch this long in all axes, in scans, holds the foreground wherever it lies
FOREGROUND_FRACTION = 0.33  # nnU-Net
FOREGROUND_FRACTION_SMALL = 0.5  # where a structure is below the share that follows
SMALL_STRUCTURE_SHARE = 0.01
RARE_CLASS_SHARE = 0.5  # a class in fewer of the cases is drawn before the case
# Structures this much smaller than the largest count more in the loss, by the root of what is missing.
WEIGHTED_RATIO = 50
MOST_WEIGHT = 3.0

# Augmentation: the shipped experiment's, except as told. ----------------------------------------------
# Measured: twice as strong (`augmented`) -.0091 (-.0132 to -.0050) in the time given.

ROTATION_DEGREES = 20.0
SCALE = (0.8, 1.25)
SPATIAL_PROBABILITY = 0.8
INTENSITY_PROBABILITY = 0.3
INTENSITY_PROBABILITY_CT = 0.15  # Hounsfield units are calibrated: they vary less between scanners
BRIGHTNESS_CT = 0.1
BIAS_FIELD = 0.1
BIAS_FIELD_EXTENT_MM = 120.0  # a coil's field varies little over less
# Not for its cost (about 1 ms for 32 x 48 x 32 voxels): stronger augmentation cost Dice in the time given.
# By itself it has not been measured.
ELASTIC_MM = 0.0
LOW_RESOLUTION_RATIO = 1.3  # of the 90th to the 10th percentile of voxel sizes, above which it is imitated
MOST_LOW_RESOLUTION = 2.0

# Optimization. ----------------------------------------------------------------------------------------

OPTIMIZER = "adamw"  # to be measured by `sgd`
LEARNING_RATE = 0.004  # of batches of two patches; other batch sizes by the square root
DECAY = "cosine"  # to be measured by `polynomial`
WEIGHT_DECAY = 0.01
WARMUP_FRACTION = 0.03
BATCH_SIZE = 2  # to be measured by `batch_1` and `batch_4`; 1 where the budgets allow no more
EMA_SHARE = 0.3  # of the run, over which weights are averaged, and
EMA_MOST_STEPS = 500  # at most so many steps: the shipped experiment's decay of 0.998
LEAST_STEPS = 200  # fewer teach nothing: such a plan exceeds its time, with a warning
MOST_EPOCHS = 500  # nnU-Net trains for 1000 of 250 batches, whatever the dataset's size
# How the time is shared between larger patches and more steps: so many steps in 30 minutes, four times the
# time gives twice the steps.
WANTED_STEPS = 1000
WANTED_MINUTES = 30.0
VALIDATION_SHARE = 0.05  # of the time that validations during the run may take, of
VALIDATIONS = 4
CHECKPOINT_SECONDS = 300
FOLDS = 5
