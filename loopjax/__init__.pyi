# The public names and their homes: read by type checkers, and at run time by `lazy_loader`.
from .detectors.base import Detector as Detector
from .detectors.ensemble import Ensemble as Ensemble
from .detectors.isolation_forest import IsolationForest as IsolationForest
from .detectors.knn import KNN as KNN
from .detectors.knn import LocalKNN as LocalKNN
from .detectors.mahalanobis import Mahalanobis as Mahalanobis
from .detectors.mean_cosine import MeanCosine as MeanCosine
from .detectors.pca import PCA as PCA
from .detectors.rows import DataError as DataError
from .detectors.storage import load_detector as load_detector
from .detectors.storage import save_detector as save_detector
from .detectors.svdd.estimator import DeepSVDD as DeepSVDD
from .detectors.svdd.sphere_svdd import SphereSVDD as SphereSVDD
from .embedding.chain import embed as embed
from .embedding.chain import embed_corpus as embed_corpus
from .embedding.chain import embed_shared as embed_shared
from .embedding.engines import EmbedBatches as EmbedBatches
from .encoders.load import load_encoder as load_encoder
from .errors import InterruptedRunError as InterruptedRunError
from .errors import LoopjaxError as LoopjaxError
from .errors import ModelCheckError as ModelCheckError
from .errors import TooManyRejectedError as TooManyRejectedError
from .errors import UserError as UserError
from .errors import WriteError as WriteError
from .experiment.load import load_config as load_config
from .experiment.run import run_experiment as run_experiment
from .explanation import explain as explain
from .library.dedup import dedup as dedup
from .library.mislabelled import mislabelled as mislabelled
from .library.similar import similar as similar
from .model import Model as Model
from .model import load_model as load_model
from .report.page import write_report as write_report
from .store.read import Embeddings as Embeddings
from .store.read import read_embeddings as read_embeddings

__version__: str
