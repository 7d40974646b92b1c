"""The store that zarr reads from by itself."""

from typing import Any

from zarr.storage import ObjectStore

from cache.stores.requests import asked_by_zarr


class PatientStore(ObjectStore[Any]):
    """Asks again for what arrives cut short."""

    async def get(self, *arguments: Any, **options: Any) -> Any:
        get = super().get
        return await asked_by_zarr(lambda: get(*arguments, **options))
