from audiossl.embedding import Embedder as Embedder
from audiossl.embedding import embed as embed
from audiossl.errors import AudiosslError as AudiosslError
from audiossl.errors import InputError as InputError
from audiossl.model import load as load
from audiossl.records import EmbedRecord as EmbedRecord
from audiossl.records import ErrorRecord as ErrorRecord
from audiossl.records import Label as Label
from audiossl.records import TagRecord as TagRecord
from audiossl.tagging import Tagger as Tagger
from audiossl.tagging import tag as tag

__version__: str
