"""Operators composed of other operators, and operators whose products cost nothing."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.operator import LinearOperator, references_of, require_operator
from pyhessian_spectra.spectra.space import VectorSpace


class IdentityOperator(LinearOperator):
    """The identity operator of a vector space.

    >>> IdentityOperator(VectorSpace(2, dtype=torch.float64)).to_dense()
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """

    kind = "identity"

    def __init__(self, space: VectorSpace) -> None:
        self.space = space

    def reference(self) -> LinearOperator | None:
        """The identity in float64, if this is not."""
        precise = VectorSpace(self.n, dtype=torch.float64, device=self.device)
        return None if self.dtype == torch.float64 else IdentityOperator(precise)

    def _product(self, v: Tensor) -> Tensor:
        return v.clone()

    _matvec = _matmat = _product


class DiagonalOperator(LinearOperator):
    """A diagonal matrix, given by its entries (n,); raises InputError if these are not a vector of floats.

    It multiplies vectors of the entries' dtype, or of ``dtype``, in which they are rounded; :meth:`reference` is not.

    >>> DiagonalOperator(torch.tensor([1.0, 2.0])) @ torch.ones(2)
    tensor([1., 2.])
    """

    kind = "diagonal"

    def __init__(self, entries: Tensor, *, dtype: torch.dtype | None = None) -> None:
        if entries.dim() != 1 or not entries.is_floating_point():
            raise InputError(f"a vector of real entries is needed, got shape {tuple(entries.shape)} of {entries.dtype}")
        super().__init__(len(entries), dtype=dtype or entries.dtype, device=entries.device)
        self._given, self._entries = entries, entries.to(self.dtype)

    def reference(self) -> LinearOperator | None:
        """The same matrix in float64, if it is not."""
        return None if self.dtype == torch.float64 else DiagonalOperator(self._given.double())

    def _matvec(self, v: Tensor) -> Tensor:
        return self._entries * v

    def _matmat(self, v: Tensor) -> Tensor:
        return self._entries[:, None] * v


class _Around(LinearOperator):
    """An operator made of one other, ``self._op``."""

    _op: LinearOperator

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        return (self._op,)

    def reference(self) -> LinearOperator | None:
        """The same of the reference of ``A``."""
        inner = self._op.reference()
        return None if inner is None else self._around(inner)

    @abstractmethod
    def _around(self, op: LinearOperator) -> LinearOperator:
        """The same made of another operator."""


class ShiftedOperator(_Around):
    """``A + shift * I``, for damping or to move a spectrum along the axis; eigenvectors are those of ``A``."""

    def __init__(self, op: LinearOperator, shift: float) -> None:
        require_operator(op)
        self.space, self.kind = op.space, f"{op.kind} + {shift:g} identity"
        self._op, self._shift = op, float(shift)

    def _around(self, op: LinearOperator) -> LinearOperator:
        return ShiftedOperator(op, self._shift)

    def _product(self, v: Tensor) -> Tensor:
        return torch.add(self._op @ v, v, alpha=self._shift)

    _matvec = _matmat = _product


class BlockDiagonalOperator(LinearOperator):
    """A matrix with the given blocks on its diagonal and zeros elsewhere; InputError is raised if they do not fit.

    Parameters
    ----------
    blocks : sequence of LinearOperator
        At least one, in one dtype and on one device.
    indices : sequence of Tensor, optional
        The coordinates of each block, int64, without overlap; rows and columns of all other coordinates are zero. By
        default the blocks follow one another.
    n : int, optional
        Dimension of the matrix, by default the largest index plus one.
    """

    def __init__(
        self, blocks: Sequence[LinearOperator], indices: Sequence[Tensor] | None = None, *, n: int | None = None
    ) -> None:
        if not blocks:
            raise InputError("blocks is empty; a block-diagonal operator needs at least one")
        for block in blocks:
            require_operator(block)
            if (block.dtype, block.device) != (blocks[0].dtype, blocks[0].device):
                raise InputError("blocks must share dtype and device; convert the models they come from")
        if indices is None:
            ends = torch.tensor([0, *(block.n for block in blocks)]).cumsum(0).tolist()
            indices = [torch.arange(a, b) for a, b in itertools.pairwise(ends)]
        if [len(i) for i in indices] != [block.n for block in blocks]:
            raise InputError("each block needs as many indices as it has rows")
        used = torch.cat(list(indices))
        n = int(used.max()) + 1 if n is None else n
        if len(used.unique()) != len(used) or int(used.max()) >= n:
            raise InputError(f"indices of blocks must be distinct and below n = {n}")
        super().__init__(n, dtype=blocks[0].dtype, device=blocks[0].device)
        self.kind = "block-diagonal " + ", ".join(dict.fromkeys(block.kind for block in blocks))
        self._blocks = [(block, i.to(self.device)) for block, i in zip(blocks, indices, strict=True)]

    @property
    def parts(self) -> tuple[LinearOperator, ...]:
        return tuple(block for block, _ in self._blocks)

    def reference(self) -> LinearOperator | None:
        """The references of the blocks in their places; None if one of them has none."""
        blocks = references_of([block for block, _ in self._blocks])
        indices = [index for _, index in self._blocks]
        return None if blocks is None else BlockDiagonalOperator(blocks, indices, n=self.n)

    def _product(self, v: Tensor) -> Tensor:
        product = torch.zeros_like(v)
        for block, index in self._blocks:
            product[index] = block @ v[index]
        return product

    _matvec = _matmat = _product


class CongruenceOperator(_Around):
    """``P^T A P``: a block of ``A``, ``A`` in other coordinates, or ``A`` preconditioned from both sides.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    transform : Tensor
        ``P``. Indices (m,), int64, select a block of ``A``. Floats (n,) are a diagonal, such as that of ``M^-1/2`` for
        a preconditioner ``M``. Floats (n, m) are the matrix itself. Other shapes raise InputError.

    Examples
    --------
    >>> from pyhessian_spectra import MatrixOperator
    >>> a = MatrixOperator(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
    >>> CongruenceOperator(a, torch.tensor([1])).to_dense()
    tensor([[3.]])
    >>> CongruenceOperator(a, torch.tensor([1.0, 2.0])).to_dense()
    tensor([[ 2.,  2.],
            [ 2., 12.]])
    """

    def __init__(self, op: LinearOperator, transform: Tensor) -> None:
        require_operator(op)
        picks = not transform.is_floating_point()
        if transform.dim() not in ((1,) if picks else (1, 2)) or (not picks and len(transform) != op.n):
            raise InputError(
                f"transform must be indices (m,), a diagonal ({op.n},) or a matrix ({op.n}, m), got shape "
                f"{tuple(transform.shape)} of {transform.dtype}"
            )
        m = transform.shape[-1] if picks or transform.dim() == 2 else op.n
        super().__init__(m, dtype=op.dtype, device=op.device)
        self.kind = f"{'block of' if picks else 'transformed'} {op.kind}"
        self._op, self._picks = op, picks
        self._given, self._transform = transform, transform.to(op.device, None if picks else op.dtype)

    def _around(self, op: LinearOperator) -> LinearOperator:
        return CongruenceOperator(op, self._given)

    def _product(self, v: Tensor) -> Tensor:
        p, op = self._transform, self._op
        if self._picks:
            whole = v.new_zeros(op.n, *v.shape[1:])
            whole[p] = v
            return (op @ whole)[p]
        if p.dim() == 2:
            return p.T @ (op @ (p @ v))
        scale = p if v.dim() == 1 else p[:, None]
        return scale * (op @ (scale * v))

    _matvec = _matmat = _product
