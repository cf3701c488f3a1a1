"""Which normalization is stable at batch sizes 1 to 4: norm × batch size × seed, probed and judged.

from medseg_brn.comparison import probe
examination = probe(model, loader)      # any torch module with norm layers
"""

from medseg_brn.probes.examination import Examination, probe

__all__ = ["Examination", "probe"]
