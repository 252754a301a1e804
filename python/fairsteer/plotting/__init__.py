"""Pictures of steering, by scikit-learn's conventions: ``from_estimator``, ``from_predictions``, ``plot(ax=…)``.

They need matplotlib (``pip install "fairsteer[report]"``), take text and grounds from its style, dark ones too, and
tell groups apart by colours that the colour-blind can, and by shapes.
"""

from fairsteer.plotting._certificate import CertificateDisplay
from fairsteer.plotting._posterior import IdealPosteriorDisplay
from fairsteer.plotting._scores import GroupScoreDisplay
from fairsteer.plotting._tpr import TPRDisplay
from fairsteer.plotting._trade_off import TradeOffDisplay

__all__ = ["CertificateDisplay", "GroupScoreDisplay", "IdealPosteriorDisplay", "TPRDisplay", "TradeOffDisplay"]
