"""LoHan: fine-tune a language model that does not fit into the GPU, nor into host memory."""
