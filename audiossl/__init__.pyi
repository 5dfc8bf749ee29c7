from audiossl.embedding import Embedder as Embedder
from audiossl.embedding import embed as embed
from audiossl.errors import AudiosslError as AudiosslError
from audiossl.errors import InputError as InputError
from audiossl.errors import ModelError as ModelError
from audiossl.errors import UsageError as UsageError
from audiossl.formats import Limits as Limits
from audiossl.formats import RawFormat as RawFormat
from audiossl.model import load as load
from audiossl.records import EmbedRecord as EmbedRecord
from audiossl.records import ErrorRecord as ErrorRecord
from audiossl.records import Label as Label
from audiossl.records import TagRecord as TagRecord
from audiossl.tagging import Tagger as Tagger
from audiossl.tagging import tag as tag

__version__: str
