"""Which pages of the engine's memory are in use, and by how many.

Requests that share a prefix share its full pages; a page is free again when its last owner gives it back. Under a mesh
every data shard has pages of its own, numbered from 0. Page 0 of a shard is nobody's: what must be written somewhere,
but never read, goes there.
"""

from collections.abc import Sequence


class PagePool:
    """The pages of one data shard.

    Args:
      num_pages: all pages, with page 0, which is never given out.
      page_size: tokens of a page.

    Raises:
      ValueError: fewer than 2 pages, or pages without tokens.
    """

    def __init__(self, num_pages: int, page_size: int):
        if num_pages < 2 or page_size < 1:
            raise ValueError(
                f"{num_pages} pages of {page_size} tokens hold nothing: page 0 is nobody's; give at least 2 pages of "
                "at least 1 token."
            )
        self.page_size, self.num_pages = page_size, num_pages
        # The page that was given back last is given out first: its memory is likely to be close.
        self._free = list(range(num_pages - 1, 0, -1))
        self._owners = [0] * num_pages

    @property
    def num_free(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    def pages_for(self, num_tokens: int) -> int:
        """Returns how many pages so many tokens of one request need."""
        return -(-num_tokens // self.page_size)

    def take(self, count: int) -> list[int] | None:
        """Gives out ``count`` pages with one owner each, or None, and no page, if so many are not free."""
        if count > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._owners[page] = 1
        return taken

    def share(self, pages: Sequence[int]) -> None:
        """Adds an owner to pages that are in use."""
        for page in pages:
            assert self._owners[page] > 0, f"page {page} is free"
            self._owners[page] += 1

    def give_back(self, pages: Sequence[int]) -> None:
        """Removes an owner from each page; those without any are free again."""
        for page in pages:
            assert self._owners[page] > 0, f"page {page} is given back twice"
            self._owners[page] -= 1
            if not self._owners[page]:
                self._free.append(page)
