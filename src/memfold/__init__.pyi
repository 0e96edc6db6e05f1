from .types import Curve as Curve
from .types import Estimate as Estimate
from .types import InputError as InputError
from .types import Samples as Samples

__version__: str
