"""BibTeX of the methods that a result used."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from memfold.types import InputError


@dataclass(frozen=True)
class Citation:
    """A publication behind a method.

    Attributes:
        key: the BibTeX key, and the name by which `cite` finds the publication.
        text: authors, title, place and year in one line.
        bibtex: the BibTeX entry.
        url: where to read it.
    """

    key: str
    text: str
    bibtex: str
    url: str


def cite(*keys: str) -> tuple[Citation, ...]:
    """Look publications up by their keys, in the order asked for, each once.

    Args:
        *keys: BibTeX keys such as "kamkari2024flipd"; `CITATIONS` lists all of them.

    Returns:
        The publications.

    Raises:
        InputError: a key is unknown; the message names the nearest known ones.

    Example:
        >>> cite("benjamini1995fdr")[0].url
        'https://doi.org/10.1111/j.2517-6161.1995.tb02031.x'
    """
    for key in keys:
        if key not in CITATIONS:
            near = difflib.get_close_matches(key, CITATIONS, n=3, cutoff=0.4) or sorted(CITATIONS)
            raise InputError(f"unknown citation {key!r}; did you mean {', '.join(near)}?")
    return tuple(CITATIONS[key] for key in dict.fromkeys(keys))


def bibliography(*keys: str) -> str:
    """Join the BibTeX entries of some publications, or of all without keys, into one text."""
    return "\n\n".join(c.bibtex for c in cite(*(keys or CITATIONS))) + "\n"


def _entry(kind: str, key: str, url: str, **fields: str) -> Citation:
    """Write one publication both as BibTeX and as a line of text."""
    lines = [f"  {name} = {{{value}}}," for name, value in {**fields, "url": url}.items()]
    bibtex = "\n".join([f"@{kind}{{{key},", *lines, "}"])
    authors = [" ".join(reversed(a.split(", "))) for a in fields["author"].split(" and ")]
    names = ", ".join(authors[:-1]) + (" and " if len(authors) > 1 else "") + authors[-1]
    place = next(
        fields[name]
        for name in ("journal", "booktitle", "publisher", "howpublished", "note")
        if name in fields
    )
    plain = f"{names}. {fields['title']}. {place}, {fields['year']}."
    for latex, character in _LATEX.items():
        plain = plain.replace(latex, character)
    return Citation(key, plain.translate({ord("{"): None, ord("}"): None}), bibtex, url)


_LATEX = {
    r"{\`e}": "è",
    r"{\l}": "ł",
    r"{\L}": "Ł",
    r"{\'n}": "ń",
    r"{\'c}": "ć",
    r"{\v s}": "š",
    r"{\'e}": "é",
    r"{\"o}": "ö",
    r"{\"a}": "ä",
    r"\&": "&",
    "--": "–",
    "``": "“",
    "''": "”",
    "`": "'",
}

_ENTRIES = (
    # The framework, and the intrinsic dimension that a model has learned.
    _entry(
        "inproceedings",
        "ross2025memorization",
        "https://arxiv.org/abs/2411.00113",
        author="Ross, Brendan Leigh and Kamkari, Hamidreza and Wu, Tongzi and Hosseinzadeh, Rasa "
        "and Liu, Zhaoyan and Stein, George and Cresswell, Jesse C. and Loaiza-Ganem, Gabriel",
        title="A Geometric Framework for Understanding Memorization in Generative Models",
        booktitle="International Conference on Learning Representations",
        year="2025",
        eprint="2411.00113",
        archiveprefix="arXiv",
    ),
    _entry(
        "inproceedings",
        "kamkari2024flipd",
        "https://arxiv.org/abs/2406.03537",
        author="Kamkari, Hamidreza and Ross, Brendan Leigh and Hosseinzadeh, Rasa and "
        "Cresswell, Jesse C. and Loaiza-Ganem, Gabriel",
        title="A Geometric View of Data Complexity: Efficient Local Intrinsic Dimension "
        "Estimation with Diffusion Models",
        booktitle="Advances in Neural Information Processing Systems",
        volume="37",
        year="2024",
        eprint="2406.03537",
        archiveprefix="arXiv",
    ),
    _entry(
        "misc",
        "yeats2025dsm",
        "https://arxiv.org/abs/2510.12975",
        author="Yeats, Eric and Jacobson, Aaron and Hannan, Darryl and Jia, Yiran and "
        "Doster, Timothy and Kvinge, Henry and Mahan, Scott",
        title="A Connection Between Score Matching and Local Intrinsic Dimension",
        howpublished="arXiv preprint arXiv:2510.12975",
        year="2025",
        eprint="2510.12975",
        archiveprefix="arXiv",
    ),
    _entry(
        "misc",
        "osada2026lhsd",
        "https://arxiv.org/abs/2605.01221",
        author="Osada, Genki",
        title="Local Hessian Spectral Filtering for Robust Intrinsic Dimension Estimation",
        howpublished="arXiv preprint arXiv:2605.01221",
        year="2026",
        eprint="2605.01221",
        archiveprefix="arXiv",
    ),
    _entry(
        "inproceedings",
        "stanczuk2024normalbundle",
        "https://arxiv.org/abs/2212.12611",
        author=r"Stanczuk, Jan Pawel and Batzolis, Georgios and Deveney, Teo and "
        r"Sch{\"o}nlieb, Carola-Bibiane",
        title="Diffusion Models Encode the Intrinsic Dimension of Data Manifolds",
        booktitle="International Conference on Machine Learning",
        year="2024",
        eprint="2212.12611",
        archiveprefix="arXiv",
    ),
    # The intrinsic dimension of data.
    _entry(
        "article",
        "fukunaga1971pca",
        "https://doi.org/10.1109/T-C.1971.223208",
        author="Fukunaga, Keinosuke and Olsen, David R.",
        title="An Algorithm for Finding Intrinsic Dimensionality of Data",
        journal="IEEE Transactions on Computers",
        volume="C-20",
        number="2",
        pages="176--183",
        year="1971",
    ),
    _entry(
        "inproceedings",
        "levina2004mle",
        "https://papers.nips.cc/paper/2577-maximum-likelihood-estimation-of-intrinsic-dimension",
        author="Levina, Elizaveta and Bickel, Peter J.",
        title="Maximum Likelihood Estimation of Intrinsic Dimension",
        booktitle="Advances in Neural Information Processing Systems",
        volume="17",
        year="2004",
    ),
    _entry(
        "misc",
        "mackay2005mle",
        "http://www.inference.org.uk/mackay/dimension/",
        author="MacKay, David J. C. and Ghahramani, Zoubin",
        title="Comments on `Maximum Likelihood Estimation of Intrinsic Dimension' by E. Levina "
        "and P. Bickel (2004)",
        note="Online note",
        year="2005",
    ),
    _entry(
        "article",
        "facco2017twonn",
        "https://doi.org/10.1038/s41598-017-11873-y",
        author="Facco, Elena and d'Errico, Maria and Rodriguez, Alex and Laio, Alessandro",
        title="Estimating the Intrinsic Dimension of Datasets by a Minimal Neighborhood "
        "Information",
        journal="Scientific Reports",
        volume="7",
        pages="12140",
        year="2017",
    ),
    # Memorization: copies of training images.
    _entry(
        "inproceedings",
        "carlini2023extracting",
        "https://arxiv.org/abs/2301.13188",
        author=r"Carlini, Nicholas and Hayes, Jamie and Nasr, Milad and Jagielski, Matthew and "
        r"Sehwag, Vikash and Tram{\`e}r, Florian and Balle, Borja and Ippolito, Daphne and "
        r"Wallace, Eric",
        title="Extracting Training Data from Diffusion Models",
        booktitle="USENIX Security Symposium",
        year="2023",
        eprint="2301.13188",
        archiveprefix="arXiv",
    ),
    # Traces and spectra.
    _entry(
        "article",
        "hutchinson1989trace",
        "https://doi.org/10.1080/03610918908812806",
        author="Hutchinson, M. F.",
        title="A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian "
        "Smoothing Splines",
        journal="Communications in Statistics - Simulation and Computation",
        volume="18",
        number="3",
        pages="1059--1076",
        year="1989",
    ),
    _entry(
        "inproceedings",
        "meyer2021hutchpp",
        "https://doi.org/10.1137/1.9781611976496.16",
        author="Meyer, Raphael A. and Musco, Cameron and Musco, Christopher and Woodruff, David P.",
        title="Hutch++: Optimal Stochastic Trace Estimation",
        booktitle="Symposium on Simplicity in Algorithms",
        pages="142--155",
        year="2021",
        eprint="2010.09649",
        archiveprefix="arXiv",
    ),
    _entry(
        "article",
        "epperly2024xtrace",
        "https://doi.org/10.1137/23M1548323",
        author="Epperly, Ethan N. and Tropp, Joel A. and Webber, Robert J.",
        title="XTrace: Making the Most of Every Sample in Stochastic Trace Estimation",
        journal="SIAM Journal on Matrix Analysis and Applications",
        volume="45",
        number="1",
        pages="1--23",
        year="2024",
        eprint="2301.07825",
        archiveprefix="arXiv",
    ),
    _entry(
        "article",
        "ubaru2017slq",
        "https://doi.org/10.1137/16M1104974",
        author="Ubaru, Shashanka and Chen, Jie and Saad, Yousef",
        title="Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature",
        journal="SIAM Journal on Matrix Analysis and Applications",
        volume="38",
        number="4",
        pages="1075--1099",
        year="2017",
    ),
    # From numbers to verdicts.
    _entry(
        "book",
        "vovk2005conformal",
        "https://doi.org/10.1007/b106715",
        author="Vovk, Vladimir and Gammerman, Alexander and Shafer, Glenn",
        title="Algorithmic Learning in a Random World",
        publisher="Springer",
        year="2005",
    ),
    _entry(
        "article",
        "bates2023conformal",
        "https://doi.org/10.1214/22-AOS2244",
        author=r"Bates, Stephen and Cand{\`e}s, Emmanuel and Lei, Lihua and Romano, Yaniv and "
        r"Sesia, Matteo",
        title="Testing for Outliers with Conformal p-Values",
        journal="The Annals of Statistics",
        volume="51",
        number="1",
        pages="149--178",
        year="2023",
        eprint="2104.08279",
        archiveprefix="arXiv",
    ),
    _entry(
        "article",
        "benjamini1995fdr",
        "https://doi.org/10.1111/j.2517-6161.1995.tb02031.x",
        author="Benjamini, Yoav and Hochberg, Yosef",
        title="Controlling the False Discovery Rate: A Practical and Powerful Approach to "
        "Multiple Testing",
        journal="Journal of the Royal Statistical Society, Series B",
        volume="57",
        number="1",
        pages="289--300",
        year="1995",
    ),
    _entry(
        "inproceedings",
        "satopaa2011kneedle",
        "https://doi.org/10.1109/ICDCSW.2011.20",
        author=r"Satop{\"a}{\"a}, Ville and Albrecht, Jeannie and Irwin, David and "
        r"Raghavan, Barath",
        title="Finding a ``Kneedle'' in a Haystack: Detecting Knee Points in System Behavior",
        booktitle="International Conference on Distributed Computing Systems Workshops",
        pages="166--171",
        year="2011",
    ),
    # Memorization in text-to-image models.
    _entry(
        "inproceedings",
        "wen2024detecting",
        "https://openreview.net/forum?id=84n3UwkH7b",
        author="Wen, Yuxin and Liu, Yuchen and Chen, Chen and Lyu, Lingjuan",
        title="Detecting, Explaining, and Mitigating Memorization in Diffusion Models",
        booktitle="International Conference on Learning Representations",
        year="2024",
    ),
    _entry(
        "inproceedings",
        "ren2024attention",
        "https://arxiv.org/abs/2403.11052",
        author="Ren, Jie and Li, Yaxin and Zeng, Shenglai and Xu, Han and Lyu, Lingjuan and "
        "Xing, Yue and Tang, Jiliang",
        title="Unveiling and Mitigating Memorization in Text-to-Image Diffusion Models through "
        "Cross Attention",
        booktitle="European Conference on Computer Vision",
        year="2024",
        eprint="2403.11052",
        archiveprefix="arXiv",
    ),
    _entry(
        "inproceedings",
        "chen2025brightending",
        "https://arxiv.org/abs/2410.21665",
        author="Chen, Chen and Liu, Daochang and Shah, Mubarak and Xu, Chang",
        title="Exploring Local Memorization in Diffusion Models via Bright Ending Attention",
        booktitle="International Conference on Learning Representations",
        year="2025",
        eprint="2410.21665",
        archiveprefix="arXiv",
    ),
    _entry(
        "inproceedings",
        "jeon2025sharpness",
        "https://arxiv.org/abs/2412.04140",
        author="Jeon, Dongjae and Kim, Dueun and No, Albert",
        title="Understanding and Mitigating Memorization in Generative Models via Sharpness of "
        "Probability Landscapes",
        booktitle="International Conference on Machine Learning",
        year="2025",
        eprint="2412.04140",
        archiveprefix="arXiv",
    ),
    _entry(
        "inproceedings",
        "asthana2026anisotropy",
        "https://arxiv.org/abs/2601.20642",
        author="Asthana, Rohan and Belagiannis, Vasileios",
        title="Detecting and Mitigating Memorization in Diffusion Models through Anisotropy of "
        "the Log-Probability",
        booktitle="International Conference on Learning Representations",
        year="2026",
        eprint="2601.20642",
        archiveprefix="arXiv",
    ),
    _entry(
        "inproceedings",
        "kim2026curvature",
        "https://arxiv.org/abs/2605.26756",
        author="Kim, Gwangho and Lee, Sungyoon",
        title="Localizing Memorized Regions in Diffusion Models via Coordinate-Wise Curvature "
        "Differences",
        booktitle="International Conference on Machine Learning",
        year="2026",
        eprint="2605.26756",
        archiveprefix="arXiv",
    ),
    # The models that are audited.
    _entry(
        "inproceedings",
        "ho2020ddpm",
        "https://arxiv.org/abs/2006.11239",
        author="Ho, Jonathan and Jain, Ajay and Abbeel, Pieter",
        title="Denoising Diffusion Probabilistic Models",
        booktitle="Advances in Neural Information Processing Systems",
        volume="33",
        year="2020",
        eprint="2006.11239",
        archiveprefix="arXiv",
    ),
    _entry(
        "inproceedings",
        "karras2022edm",
        "https://arxiv.org/abs/2206.00364",
        author="Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli",
        title="Elucidating the Design Space of Diffusion-Based Generative Models",
        booktitle="Advances in Neural Information Processing Systems",
        volume="35",
        year="2022",
        eprint="2206.00364",
        archiveprefix="arXiv",
    ),
    # More of model-side LID, and its linear algebra.
    _entry(
        "inproceedings",
        "tempczyk2022lidl",
        "https://arxiv.org/abs/2206.14882",
        author="Tempczyk, Piotr and Michaluk, Rafa{\\l} and Garncarek, {\\L}ukasz and "
        "Spurek, Przemys{\\l}aw and Tabor, Jacek and Goli{\\'n}ski, Adam",
        title="LIDL: Local Intrinsic Dimension Estimation Using Approximate Likelihood",
        booktitle="International Conference on Machine Learning",
        year="2022",
        eprint="2206.14882",
        archiveprefix="arXiv",
    ),
    _entry(
        "article",
        "halko2011randomized",
        "https://doi.org/10.1137/090771806",
        author="Halko, Nathan and Martinsson, Per-Gunnar and Tropp, Joel A.",
        title="Finding Structure with Randomness: Probabilistic Algorithms for Constructing "
        "Approximate Matrix Decompositions",
        journal="SIAM Review",
        volume="53",
        number="2",
        pages="217--288",
        year="2011",
    ),
    # More of the intrinsic dimension of data.
    _entry(
        "misc",
        "fan2010pca",
        "https://arxiv.org/abs/1002.2050",
        author="Fan, Mingyu and Gu, Nannan and Qiao, Hong and Zhang, Bo",
        title="Intrinsic dimension estimation of data by principal component analysis",
        howpublished="arXiv preprint arXiv:1002.2050",
        year="2010",
        eprint="1002.2050",
        archiveprefix="arXiv",
    ),
    _entry(
        "inproceedings",
        "minka2000pca",
        "https://papers.nips.cc/paper/1853-automatic-choice-of-dimensionality-for-pca",
        author="Minka, Thomas P.",
        title="Automatic Choice of Dimensionality for PCA",
        booktitle="Advances in Neural Information Processing Systems",
        volume="13",
        year="2000",
    ),
    _entry(
        "article",
        "amsaleg2018mom",
        "https://doi.org/10.1007/s10618-018-0578-6",
        author="Amsaleg, Laurent and Chelly, Oussama and Furon, Teddy and "
        "Girard, St{\\'e}phane and Houle, Michael E. and Kawarabayashi, Ken-ichi and Nett, Michael",
        title="Extreme-value-theoretic estimation of local intrinsic dimensionality",
        journal="Data Mining and Knowledge Discovery",
        volume="32",
        pages="1768--1805",
        year="2018",
    ),
    _entry(
        "inproceedings",
        "amsaleg2019tle",
        "https://doi.org/10.1137/1.9781611975673.21",
        author="Amsaleg, Laurent and Chelly, Oussama and Houle, Michael E. and "
        "Kawarabayashi, Ken-ichi and Radovanovi{\\'c}, Milo{\\v s} and "
        "Treeratanajaru, Weeris",
        title="Intrinsic Dimensionality Estimation within Tight Localities",
        booktitle="SIAM International Conference on Data Mining",
        pages="181--189",
        year="2019",
    ),
    _entry(
        "article",
        "johnsson2015ess",
        "https://doi.org/10.1109/TPAMI.2014.2343220",
        author="Johnsson, Kerstin and Soneson, Charlotte and Fontes, Magnus",
        title="Low Bias Local Intrinsic Dimension Estimation from Expected Simplex Skewness",
        journal="IEEE Transactions on Pattern Analysis and Machine Intelligence",
        volume="37",
        number="1",
        pages="196--202",
        year="2015",
    ),
    _entry(
        "article",
        "grassberger1983corrint",
        "https://doi.org/10.1016/0167-2789(83)90298-1",
        author="Grassberger, Peter and Procaccia, Itamar",
        title="Measuring the strangeness of strange attractors",
        journal="Physica D",
        volume="9",
        pages="189--208",
        year="1983",
    ),
    # Prevention.
    _entry(
        "inproceedings",
        "li2023classifier",
        "https://arxiv.org/abs/2303.16203",
        author="Li, Alexander C. and Prabhudesai, Mihir and Duggal, Shivam and Brown, Ellis and "
        "Pathak, Deepak",
        title="Your Diffusion Model is Secretly a Zero-Shot Classifier",
        booktitle="IEEE/CVF International Conference on Computer Vision",
        year="2023",
        eprint="2303.16203",
        archiveprefix="arXiv",
    ),
    _entry(
        "inproceedings",
        "somepalli2023forgery",
        "https://arxiv.org/abs/2212.03860",
        author="Somepalli, Gowthami and Singla, Vasu and Goldblum, Micah and Geiping, Jonas and "
        "Goldstein, Tom",
        title="Diffusion Art or Digital Forgery? Investigating Data Replication in Diffusion "
        "Models",
        booktitle="IEEE/CVF Conference on Computer Vision and Pattern Recognition",
        year="2023",
        eprint="2212.03860",
        archiveprefix="arXiv",
    ),
    _entry(
        "inproceedings",
        "somepalli2023copying",
        "https://arxiv.org/abs/2305.20086",
        author="Somepalli, Gowthami and Singla, Vasu and Goldblum, Micah and Geiping, Jonas and "
        "Goldstein, Tom",
        title="Understanding and Mitigating Copying in Diffusion Models",
        booktitle="Advances in Neural Information Processing Systems",
        volume="36",
        year="2023",
        eprint="2305.20086",
        archiveprefix="arXiv",
    ),
    _entry(
        "inproceedings",
        "chen2024memorizationfree",
        "https://arxiv.org/abs/2404.00922",
        author="Chen, Chen and Liu, Daochang and Xu, Chang",
        title="Towards Memorization-Free Diffusion Models",
        booktitle="IEEE/CVF Conference on Computer Vision and Pattern Recognition",
        year="2024",
        eprint="2404.00922",
        archiveprefix="arXiv",
    ),
    _entry(
        "inproceedings",
        "jain2025attraction",
        "https://arxiv.org/abs/2411.16738",
        author="Jain, Anubhav and Kobayashi, Yuya and Shibuya, Takashi and Takida, Yuhta and "
        "Memon, Nasir and Togelius, Julian and Mitsufuji, Yuki",
        title="Classifier-Free Guidance inside the Attraction Basin May Cause Memorization",
        booktitle="IEEE/CVF Conference on Computer Vision and Pattern Recognition",
        pages="12871--12879",
        year="2025",
        eprint="2411.16738",
        archiveprefix="arXiv",
    ),
    _entry(
        "inproceedings",
        "han2025noise",
        "https://arxiv.org/abs/2510.08625",
        author="Han, Hyeonggeun and Kim, Sehwan and Joo, Hyungjun and Hong, Sangwoo and "
        "Lee, Jungwoo",
        title="Adjusting Initial Noise to Mitigate Memorization in Text-to-Image Diffusion Models",
        booktitle="Advances in Neural Information Processing Systems",
        year="2025",
        eprint="2510.08625",
        archiveprefix="arXiv",
    ),
)

CITATIONS: dict[str, Citation] = {entry.key: entry for entry in _ENTRIES}

SOURCES: dict[str, tuple[str, ...]] = {
    # model side
    "dsm_lid": ("yeats2025dsm",),
    "flipd": (
        "kamkari2024flipd",
        "hutchinson1989trace",
        "meyer2021hutchpp",
        "epperly2024xtrace",
    ),
    "spectral_lid": ("osada2026lhsd", "ubaru2017slq"),
    "jacobian_rank": ("stanczuk2024normalbundle", "halko2011randomized"),
    "normal_bundle": ("stanczuk2024normalbundle",),
    "fpregress": ("kamkari2024flipd",),
    "lidl": ("tempczyk2022lidl",),
    "decoder_rank": ("ross2025memorization",),
    "decoder_lpca": ("ross2025memorization", "fukunaga1971pca"),
    "decoder_slope": ("kamkari2024flipd",),
    "sampler_lid": ("ross2025memorization",),
    "knee": ("satopaa2011kneedle",),
    "knee_interval": ("satopaa2011kneedle",),
    # data side
    "EmpiricalLID": ("kamkari2024flipd",),
    "MLE": ("levina2004mle", "mackay2005mle"),
    "LPCA": ("fukunaga1971pca", "fan2010pca", "minka2000pca"),
    "TwoNN": ("facco2017twonn",),
    "MOM": ("amsaleg2018mom",),
    "TLE": ("amsaleg2019tle",),
    "ESS": ("johnsson2015ess",),
    "CorrInt": ("grassberger1983corrint",),
    # mitigations
    "embedding": ("wen2024detecting", "yeats2025dsm"),
    "rewrite": ("ross2025memorization",),
    "random_rewrite": ("ross2025memorization",),
    "reword": ("li2023classifier", "yeats2025dsm"),
    "random_words": ("somepalli2023copying",),
    "late_guidance": ("jain2025attraction",),
    "lid_guidance": ("yeats2025dsm",),
    "padding": ("chen2025brightending",),
    "noise": ("han2025noise",),
    "away": ("chen2024memorizationfree",),
}
"""Keys of the publications behind each estimator and mitigation, by its public name.

A detector says its own (`memfold.memorization.detectors.DETECTORS[name].source`)."""
