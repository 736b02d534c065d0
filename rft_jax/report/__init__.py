"""What a workdir's runs show: tables, figures and one self-contained page."""
