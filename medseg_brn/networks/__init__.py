"""Networks and their layers: batch renormalization, the 3D U-Net, surgery. No patients here."""
