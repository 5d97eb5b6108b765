"""Reading request documents: expat events straight into typed values, guided by the operation's shapes.

Elements may come in any order; those that the shape does not know are skipped; S3's namespace, another, or none are all
accepted. Refused as MalformedXML: what is not well-formed UTF-8 XML, any document type declaration (and with it every
entity trick), nesting deeper than `MAX_DEPTH`, more than `MAX_UNKNOWN` skipped elements, a wrong root, text where
elements belong, an element repeated that is not a list, a missing required element, a list longer than S3 allows.

What this module does not do: bound the size of a document (`Operation.max_body` does), or judge values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from xml.parsers import expat

from tigrislike.s3api.errors import S3Error

S3_NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
MAX_DEPTH: Final = 32  # the deepest document of the model nests 9 elements
MAX_UNKNOWN: Final = 1000  # skipping costs time too, and nobody has so much to say that S3 does not know

Convert = Callable[[str], Any]


class Element:
    """What may stand in one place of a document.

    Attributes:
        member: the key under which the parent structure keeps the value; "" for the root and for items of a list.
        children: by local name, and by expat's `namespace name` for S3's namespace; None for a scalar.
        is_list: a wrapper whose children are the items.
        repeated: a flattened list: each occurrence is one item.
        limit: the most items of a list.
        convert: from text to value; None leaves the text as it is.
        attributes: local name of an XML attribute -> (member, convert).
        required: members that a structure must have -> the error where one is missing.
    """

    __slots__ = ("attributes", "children", "convert", "is_list", "limit", "member", "repeated", "required")

    def __init__(self, member: str) -> None:
        self.member = member
        self.children: dict[str, Element] | None = None
        self.is_list = False
        self.repeated = False
        self.limit = 0
        self.convert: Convert | None = None
        self.attributes: dict[str, tuple[str, Convert | None]] = {}
        self.required: tuple[tuple[str, str], ...] = ()

    def add(self, name: str, child: Element) -> None:
        """Let `child` stand inside, under the element name `name`."""
        assert self.children is not None
        self.children[name] = child
        self.children[f"{S3_NAMESPACE} {name}"] = child


def read_document(root: Element, names: frozenset[str], body: bytes) -> dict[str, Any]:
    """The members of the structure that `body` writes.

    Args:
        root: what the document element holds.
        names: the local names that the document element may have.

    Raises:
        S3Error: MalformedXML, or the error that a shape or a converter prescribes.
    """
    reader = _Reader(root, names)
    parser = expat.ParserCreate("UTF-8", " ")
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.texts.append
    parser.StartDoctypeDeclHandler = reader.refuse
    try:
        parser.Parse(body, True)
    except expat.ExpatError:
        raise S3Error("MalformedXML") from None
    return reader.result


class _Reader:
    """The state between expat's events: the open elements, their values so far, and the text since the last tag."""

    __slots__ = ("elements", "names", "result", "root", "texts", "unknown", "values")

    def __init__(self, root: Element, names: frozenset[str]) -> None:
        self.root = root
        self.names = names
        self.elements: list[Element | None] = []  # None: unknown, skipped with all that is in it
        self.values: list[Any] = []
        self.texts: list[str] = []
        self.result: dict[str, Any] = {}
        self.unknown = 0

    def refuse(self, *_: object) -> None:
        raise S3Error("MalformedXML")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        elements = self.elements
        element: Element | None
        if elements:
            parent = elements[-1]
            if parent is None:
                element = None
            else:
                children = parent.children
                if children is None:
                    raise S3Error("MalformedXML")  # an element inside a scalar
                element = children.get(name) or children.get(name.rpartition(" ")[2])
            if self.texts:
                self.outside_text(parent)
        else:
            element = self.root
            if name.rpartition(" ")[2] not in self.names:
                raise S3Error("MalformedXML")
        if len(elements) >= MAX_DEPTH:
            raise S3Error("MalformedXML")
        elements.append(element)
        if element is None:
            self.unknown += 1
            if self.unknown > MAX_UNKNOWN:
                raise S3Error("MalformedXML")
            self.values.append(None)
        elif element.children is None:
            self.values.append(None)
        elif element.is_list:
            self.values.append([])
        else:
            value: dict[str, Any] = {}
            if attributes and element.attributes:
                for attribute, text in attributes.items():
                    known = element.attributes.get(attribute.rpartition(" ")[2])
                    if known is not None:
                        value[known[0]] = text if known[1] is None else known[1](text)
            self.values.append(value)

    def end(self, _: str) -> None:
        element = self.elements.pop()
        value = self.values.pop()
        if element is None:
            self.texts.clear()
            return
        if element.children is None:
            texts = self.texts
            value = texts[0] if len(texts) == 1 else "".join(texts)
            texts.clear()
            if element.convert is not None:
                value = element.convert(value)
        else:
            if self.texts:
                self.outside_text(element)
            if element.is_list:
                if element.limit and len(value) > element.limit:
                    raise S3Error("MalformedXML")
            else:
                for member, code in element.required:
                    if member not in value:
                        raise S3Error(code)
        if not self.elements:
            self.result = value
            return
        into = self.values[-1]
        if type(into) is list:
            into.append(value)
        elif element.repeated:
            items = into.get(element.member)
            if items is None:
                into[element.member] = [value]
            else:
                items.append(value)
                if element.limit and len(items) > element.limit:
                    raise S3Error("MalformedXML")
        elif element.member in into:
            raise S3Error("MalformedXML")
        else:
            into[element.member] = value

    def outside_text(self, element: Element | None) -> None:
        """Between elements only white space may stand, except inside what is skipped."""
        if element is not None and not "".join(self.texts).isspace():
            raise S3Error("MalformedXML")
        self.texts.clear()
