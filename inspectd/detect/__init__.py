"""The detector: WinCLIP and WinCLIP+ after Jeong et al. (CVPR 2023, arXiv 2303.14814). No other part
knows torch.
"""
