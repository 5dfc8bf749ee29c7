from audiossl.audio.formats import Limits as Limits
from audiossl.audio.formats import RawFormat as RawFormat
from audiossl.errors import AudiosslError as AudiosslError
from audiossl.errors import InputError as InputError
from audiossl.errors import ModelError as ModelError
from audiossl.errors import UsageError as UsageError
from audiossl.inference.embedding import Embedder as Embedder
from audiossl.inference.embedding import embed as embed
from audiossl.inference.tagging import Tagger as Tagger
from audiossl.inference.tagging import tag as tag
from audiossl.model import load as load
from audiossl.output.records import EmbedRecord as EmbedRecord
from audiossl.output.records import ErrorRecord as ErrorRecord
from audiossl.output.records import Label as Label
from audiossl.output.records import TagRecord as TagRecord

__version__: str
