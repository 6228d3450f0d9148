"""Item tables that are spread over processes by TorchRec: which, where, how they train and how they are saved."""
