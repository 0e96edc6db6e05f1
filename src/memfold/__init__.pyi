from .denoisers.adapters.diffusers import from_pipeline as from_pipeline
from .denoisers.adapters.diffusers import load as load
from .denoisers.base import Denoiser as Denoiser
from .denoisers.guidance import Guided as Guided
from .lid.corrint import CorrInt as CorrInt
from .lid.dsm import dsm_lid as dsm_lid
from .lid.empirical import EmpiricalLID as EmpiricalLID
from .lid.ess import ESS as ESS
from .lid.flipd import flipd as flipd
from .lid.lpca import LPCA as LPCA
from .lid.mle import MLE as MLE
from .lid.mom import MOM as MOM
from .lid.scale import knee as knee
from .lid.scale import lid_curve as lid_curve
from .lid.scale import plateau as plateau
from .lid.spectral import spectral_lid as spectral_lid
from .lid.tle import TLE as TLE
from .lid.twonn import TwoNN as TwoNN
from .memorization.complexity import features as features
from .memorization.mmh import Verdicts as Verdicts
from .memorization.mmh import judge as judge
from .memorization.replicate import nearest_training as nearest_training
from .types import Curve as Curve
from .types import Estimate as Estimate
from .types import InputError as InputError
from .types import Samples as Samples

__version__: str
